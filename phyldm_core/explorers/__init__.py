"""What a reader drags and clicks: widgets over numbers first, drawing second."""
