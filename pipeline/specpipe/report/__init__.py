"""Tables, pages and differences for people. Nothing is measured here."""
