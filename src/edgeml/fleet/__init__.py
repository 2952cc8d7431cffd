"""The fleet: registry, inventory, rollouts, controller, store, API and dashboard."""
