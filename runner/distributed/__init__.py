"""The processes that train one model together: started, told of signals, and brought to agree."""
