package lists

import (
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestAListComesThroughTheProxy(t *testing.T) {
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "by proxy: "+r.URL.String()) }))
	defer proxy.Close()
	got, err := Fetch(t.Context(), "http://cloud.example.org/SHA256SUMS", Way{HTTPProxy: proxy.URL, NoProxy: "other.example.org"})
	if err != nil || got != "by proxy: http://cloud.example.org/SHA256SUMS" {
		t.Error(got, err)
	}
}

func TestAnAuthorityOfTheBuildIsTrustedAndNoOther(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "sums") }))
	defer server.Close()
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	if got, err := Fetch(t.Context(), server.URL, Way{CA: ca}); err != nil || got != "sums" {
		t.Error(got, err)
	}
	if _, err := Fetch(t.Context(), server.URL, Way{NoProxy: "x"}); err == nil {
		t.Error("an unknown authority was trusted")
	}
	if _, err := Fetch(t.Context(), server.URL, Way{CA: "no certificate"}); err == nil || !strings.Contains(err.Error(), "--ca-file") {
		t.Error(err)
	}
}

func TestWhatIsNoListIsAnError(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/large" {
			_, _ = io.WriteString(w, strings.Repeat("x", maxSize+1))
			return
		}
		http.NotFound(w, r)
	}))
	defer server.Close()
	for path, says := range map[string]string{"/large": "larger than", "/missing": "404"} {
		if _, err := Fetch(t.Context(), server.URL+path, Way{NoProxy: "x"}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
