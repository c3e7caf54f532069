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
	c.Schema, c.Omitted = Schema, max(0, r.Omitted)
	c.each(func(s string, tag reflect.StructTag) string { return cleanText(s, limit(tag, "text", defaultText)) })
	c.Began = r.Began.UTC().Truncate(time.Second)
	if year := c.Began.Year(); year < 0 || year > 9999 { // JSON cannot hold it
		c.Began = time.Time{}
	}
	pictures := c.Pictures
	c.Pictures = nil
	for _, p := range pictures {
		config, err := png.DecodeConfig(bytes.NewReader(p.PNG))
		if err == nil && len(p.PNG) <= maxPNG && config.Width*config.Height <= maxPixels {
			c.Pictures = append(c.Pictures, Picture{p.Title, p.PNG, config.Width, config.Height})
		}
	}
	return &c
}

// Mask replaces secrets in all texts.
func (r *Report) Mask(with *strings.Replacer) {
	r.each(func(s string, _ reflect.StructTag) string { return with.Replace(s) })
}

// each changes every text, and brings every list and number within its bounds.
// It walks the type, so that no field is forgotten; lists and maps are copied
// before.
func (r *Report) each(change func(string, reflect.StructTag) string) {
	rows := func(n int, tag reflect.StructTag) int {
		kept := min(n, limit(tag, "rows", defaultRows))
		r.Omitted += n - kept
		return kept
	}
	var walk func(reflect.Value, reflect.StructTag)
	walk = func(v reflect.Value, tag reflect.StructTag) {
		switch v.Kind() {
		case reflect.String:
			v.SetString(change(v.String(), tag))
		case reflect.Int64:
			v.SetInt(min(max(v.Int(), 0), maxNumber))
		case reflect.Struct:
			for i := range v.NumField() {
				if f := v.Type().Field(i); f.IsExported() { // a time has none
					walk(v.Field(i), f.Tag)
				}
			}
		case reflect.Slice:
			if v.Type().Elem().Kind() == reflect.Uint8 || v.Len() == 0 {
				return
			}
			n := rows(v.Len(), tag)
			kept := reflect.MakeSlice(v.Type(), n, n)
			reflect.Copy(kept, v)
			for i := range n {
				walk(kept.Index(i), tag)
			}
			v.Set(kept)
		case reflect.Map:
			all := v.Interface().(map[string]string) // there is no other
			if len(all) == 0 {
				return
			}
			kept := map[string]string{}
			for _, name := range slices.Sorted(maps.Keys(all))[:rows(len(all), tag)] {
				kept[change(name, "")] = change(all[name], tag)
			}
			v.Set(reflect.ValueOf(kept))
		}
	}
	walk(reflect.ValueOf(r).Elem(), "")
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
	return text.Cut(strings.TrimSpace(text.Lines(s[:min(len(s), generous*limit)])), limit)
}
