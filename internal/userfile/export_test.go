package userfile

import "time"

func init() { pipeWait = time.Second }
