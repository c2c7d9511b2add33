"""Reports: verdicts, statistics, tables, figures and pages, from the content of the store."""
