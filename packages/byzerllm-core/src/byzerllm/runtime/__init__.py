"""Where models live: Ray actors, the traffic to them, and the same without Ray."""
