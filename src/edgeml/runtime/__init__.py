"""Runtime -> Program -> Session, DeviceFacts of this machine, and measurement."""
