"""Every MQTT topic and payload, versioned."""
