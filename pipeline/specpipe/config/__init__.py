"""One YAML file into frozen records. No model is read here."""
