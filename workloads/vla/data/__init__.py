"""Steps of robot episodes for a policy: sources, statistics, augmentation."""
