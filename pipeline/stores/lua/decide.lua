-- Write down what holds from now on, unless somebody was faster. KEYS: decisions. ARGV: number of the ones before, the new ones.
local before = redis.call('GET', KEYS[1])
local number = before and string.match(before, '^%d+') or '0'
if number ~= ARGV[1] then return before end
redis.call('SET', KEYS[1], ARGV[2])
return ARGV[2]
