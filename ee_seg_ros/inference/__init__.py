"""What runs on a robot besides ROS: bundles, the engine, criteria, the feature payload and the link policy."""
