"""ROS 2 bags (mcap and sqlite3) as demonstrations, read with the rosbags package."""
