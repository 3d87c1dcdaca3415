"""Foreign formats as rows: the fields of each record at random access."""
