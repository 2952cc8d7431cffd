"""TUF repository and client; signed DesiredState."""
