"""The lake: the stored events as Parquet files, for other tools and for ever."""
