"""The pages of a report: HTML and Markdown."""
