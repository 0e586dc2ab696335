"""Words that every part uses: contracts, model facts, artifacts, errors. No stage, no engine."""
