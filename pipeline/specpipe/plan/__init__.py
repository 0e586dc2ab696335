"""What would be built, does it fit, and why not: pure functions over facts, no weights touched."""
