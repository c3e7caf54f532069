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
	defaultText = 200
	defaultRows = 500
)

// Bounds that keep sums and pictures sane.
const (
	maxNumber = 1 << 58 // nanoseconds or bytes; few of them cannot overflow
	maxPNG    = 4 << 20 // bytes
	maxPixels = 16_000_000
)

// clean returns a copy that can be shown and stored: every text, list and
// number within its bounds. It walks the type, so that no field is forgotten.
func (r *Report) clean() *Report {
	c := *r
	c.Schema = Schema
	c.Omitted = max(0, r.Omitted)
	cleanValue(reflect.ValueOf(&c).Elem(), "", &c.Omitted)
	c.Began = r.Began.UTC().Truncate(time.Second)
	if year := c.Began.Year(); year < 0 || year > 9999 { // JSON cannot hold it
		c.Began = time.Time{}
	}
	c.Pictures = pictures(c.Pictures)
	return &c
}

// cleanValue cleans v in place. Lists and maps are copied before.
func cleanValue(v reflect.Value, tag reflect.StructTag, omitted *int) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(cleanText(v.String(), limit(tag, "text", defaultText)))
	case reflect.Int64:
		v.SetInt(min(max(v.Int(), 0), maxNumber))
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return
		}
		for i := range v.NumField() {
			cleanValue(v.Field(i), v.Type().Field(i).Tag, omitted)
		}
	case reflect.Slice:
		cleanSlice(v, tag, omitted)
	case reflect.Map:
		cleanMap(v, tag, omitted)
	}
}

func cleanSlice(v reflect.Value, tag reflect.StructTag, omitted *int) {
	if v.Type().Elem().Kind() == reflect.Uint8 || v.Len() == 0 {
		return
	}
	n := min(v.Len(), limit(tag, "rows", defaultRows))
	*omitted += v.Len() - n
	rows := reflect.MakeSlice(v.Type(), n, n)
	reflect.Copy(rows, v)
	for i := range n {
		cleanValue(rows.Index(i), tag, omitted)
	}
	v.Set(rows)
}

func cleanMap(v reflect.Value, tag reflect.StructTag, omitted *int) {
	all := v.Interface().(map[string]string) // there is no other
	if len(all) == 0 {
		return
	}
	names := slices.Sorted(maps.Keys(all))
	names = names[:min(len(names), limit(tag, "rows", defaultRows))]
	*omitted += len(all) - len(names)
	kept := make(map[string]string, len(names))
	for _, name := range names {
		kept[cleanText(name, defaultText)] = cleanText(all[name], limit(tag, "text", defaultText))
	}
	v.Set(reflect.ValueOf(kept))
}

func limit(tag reflect.StructTag, name string, otherwise int) int {
	if n, err := strconv.Atoi(tag.Get(name)); err == nil {
		return n
	}
	return otherwise
}

// cleanText makes a guest's text fit to be shown and stored.
func cleanText(s string, limit int) string {
	const generous = 8 // bytes a character: escape sequences take room, too
	cut := len(s) > generous*limit
	if cut {
		s = s[:generous*limit]
		for i := 0; i < utf8.UTFMax && !utf8.RuneStart(s[len(s)-1]); i++ {
			s = s[:len(s)-1]
		}
	}
	s = strings.TrimSpace(text.Lines(s))
	if runes := []rune(s); len(runes) > limit || cut {
		s = string(runes[:min(len(runes), limit-1)]) + "…"
	}
	return s
}

// pictures returns those that are what they say.
func pictures(all []Picture) []Picture {
	var kept []Picture
	for _, p := range all {
		config, err := png.DecodeConfig(bytes.NewReader(p.PNG))
		if err != nil || len(p.PNG) > maxPNG || config.Width*config.Height > maxPixels {
			continue
		}
		p.Width, p.Height = config.Width, config.Height
		kept = append(kept, p)
	}
	return kept
}
