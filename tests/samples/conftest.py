"""The camera page's package is found as its program finds it."""

import sys

from camera_pages import FOLDER

sys.path.append(str(FOLDER))
