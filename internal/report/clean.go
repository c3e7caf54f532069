package report

import (
	"bytes"
	"image/png"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/netgroup-polito/diskforge/internal/text"
)

// What a field may hold where its tags say nothing.
const (
	defaultText = 200 // characters
	defaultRows = 500
)

// Bounds of sums and pictures.
const (
	maxNumber = 1 << 58 // nanoseconds or bytes; few of them cannot overflow
	maxPNG    = 4 << 20 // bytes
	maxPixels = 16_000_000
)

// clean returns a copy that can be shown and stored: every text, list and
// number within its bounds.
func (r *Report) clean() *Report {
	c := *r
	c.Schema = Schema
	c.Omitted = max(0, r.Omitted)
	walker{
		text:   func(s string, tag reflect.StructTag) string { return cleanText(s, limit(tag, "text", defaultText)) },
		number: func(n int64) int64 { return min(max(n, 0), maxNumber) },
		rows: func(n int, tag reflect.StructTag) int {
			kept := min(n, limit(tag, "rows", defaultRows))
			c.Omitted += n - kept
			return kept
		},
	}.walk(reflect.ValueOf(&c).Elem(), "")
	c.Began = r.Began.UTC().Truncate(time.Second)
	if year := c.Began.Year(); year < 0 || year > 9999 { // JSON cannot hold it
		c.Began = time.Time{}
	}
	c.Pictures = slices.DeleteFunc(c.Pictures, func(p Picture) bool {
		config, err := png.DecodeConfig(bytes.NewReader(p.PNG))
		return err != nil || len(p.PNG) > maxPNG || config.Width*config.Height > maxPixels
	})
	for i, p := range c.Pictures {
		config, _ := png.DecodeConfig(bytes.NewReader(p.PNG)) // it was decoded before
		c.Pictures[i].Width, c.Pictures[i].Height = config.Width, config.Height
	}
	return &c
}

// Mask replaces secrets in all texts.
func (r *Report) Mask(with *strings.Replacer) {
	walker{
		text:   func(s string, _ reflect.StructTag) string { return with.Replace(s) },
		number: func(n int64) int64 { return n },
		rows:   func(n int, _ reflect.StructTag) int { return n },
	}.walk(reflect.ValueOf(r).Elem(), "")
}

// walker changes a report in place. It walks the type, so that no field is
// forgotten; lists and maps are copied before.
type walker struct {
	text   func(string, reflect.StructTag) string
	number func(int64) int64
	rows   func(n int, tag reflect.StructTag) int // how many of n rows are kept
}

func (w walker) walk(v reflect.Value, tag reflect.StructTag) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(w.text(v.String(), tag))
	case reflect.Int64:
		v.SetInt(w.number(v.Int()))
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return
		}
		for i := range v.NumField() {
			w.walk(v.Field(i), v.Type().Field(i).Tag)
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 || v.Len() == 0 {
			return
		}
		n := w.rows(v.Len(), tag)
		rows := reflect.MakeSlice(v.Type(), n, n)
		reflect.Copy(rows, v)
		for i := range n {
			w.walk(rows.Index(i), tag)
		}
		v.Set(rows)
	case reflect.Map:
		all := v.Interface().(map[string]string) // there is no other
		if len(all) == 0 {
			return
		}
		kept := map[string]string{}
		for _, name := range slices.Sorted(maps.Keys(all))[:w.rows(len(all), tag)] {
			kept[w.text(name, "")] = w.text(all[name], tag)
		}
		v.Set(reflect.ValueOf(kept))
	}
}

// limit is the number in a field's tag, or otherwise.
func limit(tag reflect.StructTag, name string, otherwise int) int {
	if n, err := strconv.Atoi(tag.Get(name)); err == nil {
		return n
	}
	return otherwise
}

// cleanText makes a guest's text fit to be shown and stored. What is far too
// long is cut before it is read: escape sequences take room, too.
func cleanText(s string, limit int) string {
	const generous = 8 // bytes a character
	cut := len(s) > generous*limit
	if cut {
		s = s[:generous*limit]
		for i := 0; i < utf8.UTFMax && !utf8.RuneStart(s[len(s)-1]); i++ {
			s = s[:len(s)-1]
		}
	}
	s = strings.TrimSpace(text.Lines(s))
	if cut {
		s += "…"
	}
	return text.Cut(s, limit)
}
