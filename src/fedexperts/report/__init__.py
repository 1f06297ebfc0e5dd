"""Tables and pages from ledgers; nothing here knows live objects."""
