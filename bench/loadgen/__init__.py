"""MLPerf LoadGen over an artifact or a server: the rules, the system under test, the logs."""
