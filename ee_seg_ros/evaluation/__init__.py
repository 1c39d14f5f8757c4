"""How good, how dear and how fast: mIoU, cost, bytes, reports."""
