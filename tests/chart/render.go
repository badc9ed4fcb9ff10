// Renders a Helm chart as Helm does: Go's text/template with the functions of sprig, and of Helm those that a chart uses.
// For tests and for the manifests that are made of the chart; Helm itself is in no distribution's packages.
//
//	render CHART RELEASE NAMESPACE [VALUES]...
//
// Values are YAML files, each over those before it.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"gopkg.in/yaml.v3"
)

type object = map[string]interface{}

func load(path string) (object, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	out := object{}
	if err := yaml.Unmarshal(text, &out); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return out, nil
}

// Maps are merged, null takes a key away, and all else is replaced, as Helm has it.
func merge(into, from object) {
	for key, value := range from {
		was, isMap := into[key].(object)
		if with, ok := value.(object); ok && isMap {
			merge(was, with)
		} else if value == nil {
			delete(into, key)
		} else {
			into[key] = value
		}
	}
}

func toYAML(value interface{}) (string, error) {
	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	if err := encoder.Encode(value); err != nil {
		return "", err
	}
	return strings.TrimSuffix(out.String(), "\n"), nil
}

func render(chart, release, namespace string, files []string) (string, error) {
	about, err := load(filepath.Join(chart, "Chart.yaml"))
	if err != nil {
		return "", err
	}
	// In templates its fields begin with a capital letter.
	fields := object{}
	for key, value := range about {
		fields[strings.ToUpper(key[:1])+key[1:]] = value
	}
	values, err := load(filepath.Join(chart, "values.yaml"))
	if err != nil {
		return "", err
	}
	for _, file := range files {
		more, err := load(file)
		if err != nil {
			return "", err
		}
		merge(values, more)
	}
	paths, err := filepath.Glob(filepath.Join(chart, "templates", "*"))
	if err != nil {
		return "", err
	}
	sort.Strings(paths)
	all := template.New("chart").Option("missingkey=zero")
	all.Funcs(sprig.TxtFuncMap()).Funcs(template.FuncMap{
		"toYaml": toYAML,
		"required": func(message string, value interface{}) (interface{}, error) {
			if value == nil || value == "" {
				return nil, errors.New(message)
			}
			return value, nil
		},
		"include": func(name string, data interface{}) (string, error) {
			var out strings.Builder
			err := all.ExecuteTemplate(&out, name, data)
			return out.String(), err
		},
	})
	base := fields["Name"].(string) + "/templates"
	name := func(path string) string { return base + "/" + filepath.Base(path) }
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		if _, err := all.New(name(path)).Parse(string(text)); err != nil {
			return "", err
		}
	}
	var out strings.Builder
	for _, path := range paths {
		if strings.HasPrefix(filepath.Base(path), "_") {
			continue
		}
		var one strings.Builder
		data := object{
			"Values":   values,
			"Chart":    fields,
			"Release":  object{"Name": release, "Namespace": namespace, "Service": "Helm"},
			"Template": object{"Name": name(path), "BasePath": base},
		}
		if err := all.ExecuteTemplate(&one, name(path), data); err != nil {
			return "", err
		}
		text := strings.Trim(one.String(), "\n")
		if strings.TrimSpace(text) == "" {
			continue
		}
		if !strings.HasPrefix(text, "---") {
			text = "---\n" + text
		}
		fmt.Fprintln(&out, strings.ReplaceAll(text, "<no value>", ""))
	}
	return out.String(), nil
}

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: render CHART RELEASE NAMESPACE [VALUES]...")
		os.Exit(2)
	}
	text, err := render(os.Args[1], os.Args[2], os.Args[3], os.Args[4:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Print(text)
}
