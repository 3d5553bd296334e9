"""What the rows say: numbers in, numbers out."""
