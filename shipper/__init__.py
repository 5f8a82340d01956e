"""shipper: ships Docker and application logs to databases and log services; nothing lost, nothing doubled."""

__version__ = "0.1.0"
