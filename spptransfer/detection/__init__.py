"""Object detection from one feature map per image: windows, linear SVMs, suppression."""
