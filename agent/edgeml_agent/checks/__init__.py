"""What the agent checks of itself and its device, one file each."""
