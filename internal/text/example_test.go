package text_test

import (
	"fmt"
	"time"

	"github.com/netgroup-polito/diskforge/internal/text"
)

func ExampleLine() {
	fmt.Println(text.Line("one\tline \x1b[31mof\x1b[0m a guest\r\n::error::forged"))
	// Output: one line of a guest ::error::forged
}

func ExampleSize() {
	fmt.Println(text.Size(300), text.Size(200<<20), text.Size(3<<29))
	// Output: 1 KiB 200 MiB 1.5 GiB
}

func ExampleSpan() {
	fmt.Println(text.Span(350*time.Millisecond), text.Span(467*time.Second), text.Span(2*time.Hour+3*time.Minute))
	// Output: 350 ms 7 min 47 s 2 h 3 min
}

func ExampleURL() {
	fmt.Println(text.URL("https://me:secret@example.org/disk.qcow2?signature=secret"))
	// Output: https://example.org/disk.qcow2
}
