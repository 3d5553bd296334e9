"""The file to ship, in every precision, checked; and the epochs that prepare INT8."""
