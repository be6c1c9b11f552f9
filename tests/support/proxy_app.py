"""A proxy as servers of their own processes load it; the environment says what it stands in front of."""

import os

from watershed_mw.proxy import WebSocketProxy

application = WebSocketProxy(os.environ["WATERSHED_MW_TEST_UPSTREAM"])
