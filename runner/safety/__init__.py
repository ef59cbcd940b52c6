"""What a configuration or a command line may do: import, name, reveal."""
