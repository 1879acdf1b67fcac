"""Steps of robot episodes, made ready for a policy: sources, statistics, augmentation."""
