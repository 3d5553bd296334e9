"""Tables, Markdown and HTML for people."""
