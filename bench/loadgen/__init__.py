"""A load generator for language-model servers: several client processes, each cheap a message."""
