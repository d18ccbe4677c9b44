"""The scoring consumer: requests in, one answer each out, by the version that the deployments say."""
