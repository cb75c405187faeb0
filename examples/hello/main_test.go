package main

import (
	"net/http/httptest"
	"strings"
	"testing"
)

func TestGreeting(t *testing.T) {
	for path, want := range map[string]string{"/": "Hello, world", "/hello/kiln": "Hello, kiln"} {
		answer := httptest.NewRecorder()
		handler().ServeHTTP(answer, httptest.NewRequest("GET", path, nil))
		if answer.Code != 200 || !strings.Contains(answer.Body.String(), want) {
			t.Errorf("GET %s: %d %s, want %q", path, answer.Code, answer.Body, want)
		}
	}
}
