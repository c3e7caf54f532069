package host

import "time"

func init() { pipeWait = time.Second }
