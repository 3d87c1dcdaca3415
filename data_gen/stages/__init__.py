"""A stage and what runs it: units of work, the engine asked once, blocks of records."""
