"""A proxy for servers in processes of their own; the environment names its upstream."""

import os

from watershed_mw.proxy import WebSocketProxy

application = WebSocketProxy(os.environ["WATERSHED_MW_TEST_UPSTREAM"])
