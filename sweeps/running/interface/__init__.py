"""From what a user gives, flags, a file or objects in Python, to a sweep and how it ended."""
