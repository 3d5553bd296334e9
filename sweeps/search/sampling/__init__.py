"""Who proposes trials, what is ruled out, and when a trial is given up."""
