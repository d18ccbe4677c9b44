"""aiokafka reads the topic and looks at nothing."""

from reading import read

read(len)
