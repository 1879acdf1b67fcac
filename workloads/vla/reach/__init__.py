"""A reach task in a small kinematic simulator: closed-loop success without a robot."""
