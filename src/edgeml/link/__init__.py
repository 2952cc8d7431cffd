"""Link: MQTT 5 and 3.1.1, and an in-memory twin for tests and simulation."""
