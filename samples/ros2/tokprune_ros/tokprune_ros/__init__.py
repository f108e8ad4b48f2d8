"""A ROS 2 node that answers questions about pictures; only node.py and messages.py need ROS."""
