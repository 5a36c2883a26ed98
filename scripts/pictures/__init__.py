"""Pictures: slices with contours, surfaces, distributions and network heads; nothing else imports matplotlib."""
