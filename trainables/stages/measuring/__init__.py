"""True numbers of a file: untrained and finished, alone and beside the teacher."""
