"""Reports: verdicts, statistics, tables, figures and pages, from what the store holds."""
